"""Pages and pictures for people: what a folder of images holds, and what a network learned of it.

`image_check` (`cgh check`), `neighbour_page` (`cgh neighbours`) and `run_report` (`cgh report`);
`page` writes their HTML, one file without links to a network. Only the command line imports this
room, and its libraries are the extra `report`.
"""
