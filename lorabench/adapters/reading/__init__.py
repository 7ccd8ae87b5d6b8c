"""From a file of any trainer to canonical modules, or to one clear refusal."""
