"""What every stage shares while fitting: configuration, run directories, jobs, seeds, the loop.

Nothing here knows what is being trained; models and data live on the floors beside and above.
"""
