"""The figures that the paper printed (EMO, tables 1 and 2), shown apart from what is measured.

They cannot be had again: neither the authors' model nor their choice of videos was published,
and their FID, FVD and SyncNet protocols are not written down. Table 1 gives HDTF / internet data.
"""

from __future__ import annotations

SOURCE = "Published by the authors of EMO (arXiv 2402.17485), not measured here"
NOTE = "Other videos, other protocols: do not compare digit by digit."

TABLE_1_COLUMNS = ("Method", "FID ↓", "SyncNet ↑", "F-SIM", "FVD ↓", "E-FID ↓")
TABLE_1 = (
    ("Wav2Lip", "9.38 / 31.70", "5.79 / 4.14", "80.34 / 78.87", "407.93 / 487.00", "0.693 / 0.652"),
    (
        "SadTalker",
        "10.31 / 31.37",
        "4.82 / 2.90",
        "84.56 / 81.86",
        "214.98 / 418.19",
        "0.503 / 0.539",
    ),
    (
        "DreamTalk",
        "58.80 / 88.21",
        "3.43 / 1.29",
        "67.87 / 56.38",
        "619.05 / 584.63",
        "2.257 / 3.548",
    ),
    (
        "MakeItTalk",
        "21.73 / 39.86",
        "2.85 / 1.64",
        "76.91 / 60.12",
        "350.96 / 340.55",
        "1.072 / 0.997",
    ),
    ("Real videos", "- / -", "7.3 / 2.69", "77.44 / 72.64", "- / -", "- / -"),
    ("EMO without its own 250 h", "10.80 / -", "5.02 / -", "79.55 / -", "102.78 / -", "0.215 / -"),
    ("EMO", "8.76 / 17.33", "3.89 / 2.74", "78.96 / 77.16", "67.66 / 192.77", "0.116 / 0.187"),
)

TABLE_2_COLUMNS = ("", "No speed", "0.1", "0.7", "1.3", "1.9")
TABLE_2 = (
    ("Mean velocity", "1.365", "0.878", "1.001", "1.162", "1.246"),
    ("Velocity variance", "1.002", "0.357", "0.454", "0.550", "0.657"),
    ("VMV", "0.134", "0.046", "0.054", "0.057", "0.058"),
)
