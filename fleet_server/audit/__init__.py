"""Who did what to whom: one hash chain per writer, sealed in the transaction of the deed, fixed by signed
checkpoints."""
