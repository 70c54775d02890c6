"""Engines: what turns tokens into tokens. The one contract is `armature.engines.engine.Engine`."""
