"""What programs ask and what machines have: FLOPs of a jaxpr, compiled programs read, chips, pods that are not here."""
