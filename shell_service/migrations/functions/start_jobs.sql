-- Records that scripts are about to begin, and tells of it. Returns the fences of those that may: whose claim is valid,
-- and that are not to be cancelled. Asked again, the answer is the same.
CREATE FUNCTION start_jobs(p_jobs uuid[], p_fences bigint[]) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
DECLARE
  v_jobs uuid[];
  v_fences bigint[];
BEGIN
  WITH started AS (
    UPDATE running_job r SET started_at = coalesce(r.started_at, clock_timestamp())
    FROM unnest(p_jobs, p_fences) AS d(job_id, fence)
    WHERE r.job_id = d.job_id AND r.fence = d.fence AND r.cancel_requested_at IS NULL
    RETURNING r.job_id, r.fence)
  SELECT array_agg(s.job_id), array_agg(s.fence) INTO v_jobs, v_fences FROM started s;
  PERFORM tell_jobs('S', v_jobs);
  RETURN v_fences;
END $$;
