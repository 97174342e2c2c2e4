"""A global that a second stage must find untouched."""

SEEN = []
