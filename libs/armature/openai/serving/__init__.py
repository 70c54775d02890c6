"""The gateway's running half: models, placement, worker streams, generation, and the REST surface on top."""
