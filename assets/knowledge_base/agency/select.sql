COPY (
    SELECT *
    FROM knowledge_base.agency
    WHERE updated_at < %(export_boundary)s
      AND id NOT IN (
          SELECT DISTINCT ON (base_id) id
          FROM knowledge_base.agency
          ORDER BY base_id, updated_at DESC
      )
) TO STDOUT WITH CSV HEADER
