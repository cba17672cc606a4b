"""The steps of the pipeline: canonicalize, importance, allocate, rewrite, verify."""
