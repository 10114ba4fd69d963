"""The paper's experiments: the released code's recipe and names, the tables, and baselines.

Importing it registers the recipe `released` and the embeddings.
"""

from ddvi_fast.paper import embedding_baselines as _embedding_baselines  # noqa: F401
from ddvi_fast.paper import released as _released  # noqa: F401
