"""The fault campaign: syncs that are killed, lied to and repeated days later, and what is in Stripe afterwards."""
