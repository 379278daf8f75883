from helpers.golden import *  # noqa: F403
