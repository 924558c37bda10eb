"""Attacks on the commands: kills, full disks, hostile files and misuse."""
