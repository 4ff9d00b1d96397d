"""How generated videos are judged: the paper's metrics (EMO sec. 4.2), from folders of videos."""
