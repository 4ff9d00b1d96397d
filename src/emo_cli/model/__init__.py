"""The networks of EMO (sec. 3.2): how the picture is made. Start at `backbone.py`."""
