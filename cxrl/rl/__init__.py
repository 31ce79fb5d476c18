"""Reinforcement learning with comparative feedback, in stages from one frozen record to the next.

``PromptBatch → Rollout → RewardTable → Comparison → Advantages → UpdateStats``; :mod:`cxrl.rl.trainer` alone
knows the order.
"""
