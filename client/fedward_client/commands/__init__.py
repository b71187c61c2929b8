"""What each command of ``fedward-client`` does: functions from a site's folder to a report. They print nothing."""
