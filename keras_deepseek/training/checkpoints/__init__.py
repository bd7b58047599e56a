"""Checkpoints: what they hold, when they are written, and how a training resumes from one."""
