"""The command line: one file a verb; each unpacks a config and calls the rooms above.

Config objects stop here: everything below takes plain arguments.
"""
