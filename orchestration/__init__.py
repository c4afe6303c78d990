"""Orchestration of the metering project: the boundary between the warehouse and the outside."""
