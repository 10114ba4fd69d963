"""Configuration of training runs: schema, Hydra composition, the files in conf/."""
