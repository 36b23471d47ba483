"""Fixtures that tests of files share."""

from helpers.hub_server import hub, hub_service  # noqa: F401
