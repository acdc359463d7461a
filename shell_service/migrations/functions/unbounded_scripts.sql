-- Those of these scripts of which as many jobs may run at once as there are: none of them waits for its turn. For who
-- holds lock_scripts.
CREATE FUNCTION unbounded_scripts(p_scripts int[]) RETURNS int[]
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
BEGIN
  RETURN ARRAY(SELECT s.id FROM script s
    WHERE s.id = ANY (p_scripts) AND s.overlap = 'parallel' AND s.max_running IS NULL);
END $$;
