"""Plan a growth or a shrink: an index map for each axis, the target's config, and the transfer of each tensor."""
