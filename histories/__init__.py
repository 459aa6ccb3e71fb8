"""Learning histories: schema, HDF5 store, regions and markers, tables."""
