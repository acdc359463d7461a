-- Records how attempts ended, and tells of jobs that have ended with them. p_results: [{job_id, fence, retry_in, status,
-- reason, …}], where retry_in, in seconds, asks for another attempt, which there is unless the job is to be cancelled.
-- Returns the fences of those that counted; the same again changes nothing.
CREATE FUNCTION finish_jobs(p_results json) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
DECLARE
  e record;
  g running_job;
  v_scripts int[];
  v_jobs uuid[] := '{}';
  v_fences bigint[] := '{}';
BEGIN
  v_scripts := ARRAY(SELECT DISTINCT r.script_id
    FROM json_to_recordset(p_results) AS w(job_id uuid) JOIN running_job r ON r.job_id = w.job_id
    WHERE r.script_id IS NOT NULL);
  PERFORM lock_scripts(v_scripts);
  -- One by one: for a join the planner walks all jobs when it last knew the table to be small.
  FOR e IN
    SELECT * FROM json_to_recordset(p_results) AS r(
      job_id uuid, fence bigint, retry_in float8, status text, reason text, runner text, return_code int, signal text,
      wall_seconds float8, cpu_seconds float8, peak_memory_bytes bigint, written_bytes bigint, stdout_bytes bigint,
      stderr_bytes bigint, output_truncated boolean, artifacts int, artifacts_bytes bigint, artifacts_truncated boolean)
  LOOP
    DELETE FROM running_job r WHERE r.job_id = e.job_id AND r.fence = e.fence RETURNING r.* INTO g;
    CONTINUE WHEN NOT FOUND;
    IF e.retry_in IS NOT NULL AND g.cancel_requested_at IS NULL THEN
      INSERT INTO deferred_job (job_id, user_id, ord, run_at, attempt, script_id)
      VALUES (g.job_id, g.user_id, g.ord, clock_timestamp() + make_interval(secs => e.retry_in), g.attempt, g.script_id);
      UPDATE job j SET attempt = g.attempt, modified = statement_timestamp()
      WHERE j.id = e.job_id AND coalesce(j.status, '') = '';  -- IS NULL has an index, of all jobs that have not ended
    ELSE
      UPDATE job j SET attempt = g.attempt, modified = statement_timestamp(), finished_at = statement_timestamp(),
        started_at = g.started_at, status = e.status, runner = e.runner,
        cancelled_by = CASE WHEN e.status = 'CANCELLED' THEN g.cancelled_by END,
        reason = CASE WHEN e.status = 'CANCELLED' THEN 'cancelled by ' || g.cancelled_by ELSE e.reason END,
        return_code = e.return_code, signal = e.signal, wall_seconds = e.wall_seconds, cpu_seconds = e.cpu_seconds,
        peak_memory_bytes = e.peak_memory_bytes, written_bytes = e.written_bytes, stdout_bytes = e.stdout_bytes,
        stderr_bytes = e.stderr_bytes, output_truncated = e.output_truncated, artifacts = e.artifacts,
        artifacts_bytes = e.artifacts_bytes, artifacts_truncated = e.artifacts_truncated
      WHERE j.id = e.job_id AND coalesce(j.status, '') = '';
      CONTINUE WHEN NOT FOUND;
      v_jobs := v_jobs || e.job_id;
    END IF;
    v_fences := v_fences || e.fence;
  END LOOP;
  PERFORM tell_jobs('F', v_jobs);
  IF v_scripts <> '{}' THEN
    PERFORM admit_jobs(v_scripts);
  END IF;
  RETURN v_fences;
END $$;
