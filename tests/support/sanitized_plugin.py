"""For pytest in `make sanitize`: loads the sanitized module before any test imports the shipped one."""

from tests.support import sanitized

sanitized.load()
