"""What all commands share: the argument parser, one-line errors, console output.

Takes a list of arguments and a function; returns an exit status.
"""
