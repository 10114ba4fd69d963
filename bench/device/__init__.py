"""Checks that concern a GPU: the parts of the device check, compilation ahead of time, launch options."""
