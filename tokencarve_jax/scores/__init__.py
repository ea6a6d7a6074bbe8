"""What tokens are ranked by: information, similarity, and orders with every tie decided."""
