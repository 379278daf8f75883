"""What the tests of several folders share: `from helpers.runs import quick_arguments`."""
