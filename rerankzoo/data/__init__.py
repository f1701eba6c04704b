"""Data: loaders, data modules, the simulator and converters of public data sets."""
