"""The networks users keep."""
