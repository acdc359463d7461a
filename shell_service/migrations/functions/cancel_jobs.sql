-- Ends the waiting among these jobs, asks the runners of the running ones to end them, and enters p_audit into the log
-- (see write_audit). One call, so that nobody who stands still halfway keeps the rows that a claim has to wait for.
CREATE FUNCTION cancel_jobs(p_ids uuid[], p_by text, p_audit json[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
DECLARE
  v_ended uuid[];
  v_hexes text;
  v_scripts int[];
BEGIN
  v_scripts := ARRAY(SELECT DISTINCT j.script_id FROM job j WHERE j.id = ANY (p_ids) AND j.script_id IS NOT NULL);
  PERFORM lock_scripts(v_scripts);
  PERFORM write_audit(p_audit);
  -- A job may move between tables while we look; whoever was missed stands somewhere else at the next look.
  FOR v_look IN 1..5 LOOP
    WITH waiting AS (DELETE FROM ready_job WHERE job_id = ANY (p_ids) RETURNING job_id),
    later AS (DELETE FROM deferred_job WHERE job_id = ANY (p_ids) RETURNING job_id),
    ended AS (
      UPDATE job j SET status = 'CANCELLED', reason = 'cancelled by ' || p_by, cancelled_by = p_by,
        finished_at = clock_timestamp(), modified = clock_timestamp()
      -- An array, as of a join the planner might make a loop over all jobs that have not ended.
      WHERE j.id = ANY (ARRAY(SELECT job_id FROM waiting UNION ALL SELECT job_id FROM later)) AND j.status IS NULL
      RETURNING j.id)
    SELECT array_agg(e.id) INTO v_ended FROM ended e;
    PERFORM tell_jobs('F', v_ended);
    FOR v_hexes IN
      UPDATE running_job SET cancel_requested_at = clock_timestamp(), cancelled_by = p_by
      WHERE job_id = ANY (p_ids) AND cancel_requested_at IS NULL RETURNING replace(job_id::text, '-', '')
    LOOP
      PERFORM pg_notify('cancel', v_hexes);
    END LOOP;
    EXIT WHEN NOT EXISTS (
      SELECT FROM job j WHERE j.id = ANY (p_ids) AND j.status IS NULL AND NOT EXISTS
        (SELECT FROM running_job r WHERE r.job_id = j.id AND r.cancel_requested_at IS NOT NULL));
  END LOOP;
  PERFORM admit_jobs(v_scripts);
END $$;
