"""Puppets: a still portrait that speaks with the motion of a real clip, or of exact visemes."""
