from helpers.runs import *  # noqa: F403
