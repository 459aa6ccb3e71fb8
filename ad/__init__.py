"""The student: decoder, acting policy, rollout, evaluation and losses.

Never imports `teacher`: losses take logits, whoever made them.
"""
