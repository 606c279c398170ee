"""For all tests: how long an example of hypothesis takes on a shared machine says nothing."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
