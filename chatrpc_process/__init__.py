"""What both processes need before they have a purpose: settings and logs."""
