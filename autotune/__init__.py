"""Tuning: search spaces from schedules, candidates checked and timed, static cost models, lockfiles."""
