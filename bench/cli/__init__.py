"""The argument parser, the one-line errors and the console output of all commands.

Takes a list of arguments and a function; returns an exit status.
"""
