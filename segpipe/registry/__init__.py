"""Model versions, the aliases that name the champion, the record of its moves. Deciding is in evaluation."""
