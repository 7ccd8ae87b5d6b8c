"""From a run to a model that answers: `lorabench export`."""
