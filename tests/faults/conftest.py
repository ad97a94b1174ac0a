"""Installations whose parts tests kill."""

from tests.integration.conftest import hasty, installation, quick, template

__all__ = ["hasty", "installation", "quick", "template"]
