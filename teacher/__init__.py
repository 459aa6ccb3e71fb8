"""Who is imitated: source algorithms and the full-context teacher."""
