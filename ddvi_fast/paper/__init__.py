"""The paper's experiments: released code, tables, baselines."""
