"""The paper's experiments: the released code's recipe and names, the tables, and baselines. Importing it registers the recipe `released`."""

from ddvi_fast.paper import released as _released  # noqa: F401 - registers the recipe
