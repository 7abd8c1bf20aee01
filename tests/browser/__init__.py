"""Pages as a browser shows them. Collected only if there is one: see tests/conftest.py."""
