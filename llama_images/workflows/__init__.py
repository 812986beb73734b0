"""The order of things: each module takes ports and values, does one command's work, and returns results.

``tasks.py`` turns strings into the values and results into lines and exit codes.
"""
