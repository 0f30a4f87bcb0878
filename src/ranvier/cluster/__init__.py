"""Processes and hosts: launch, membership, step broadcast, health, and routing over replicas."""
