"""Lightning's name of the error for what cannot work."""

from everstep.errors import ConfigurationError as MisconfigurationException

__all__ = ["MisconfigurationException"]
