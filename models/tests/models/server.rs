//! A small HTTP server that can be told to misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the server does with a request for a file that it has.
#[derive(Clone, Copy, PartialEq)]
pub enum Habit {
    /// Serves ranges.
    Good,
    /// Sends the whole file, whatever was asked.
    IgnoresRange,
    /// Answers to a range with 416.
    RefusesRange,
    /// Hangs up after that many bytes of a file.
    HangsUpAfter(usize),
}

/// A request that the server has answered.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub bytes_sent: usize,
}

pub struct Server {
    pub url: String,
    habit: Arc<Mutex<Habit>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves `files`, by path, until the test ends.
    pub fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let habit = Arc::new(Mutex::new(Habit::Good));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let server = Self { url, habit: habit.clone(), requests: requests.clone() };
        let files = Arc::new(files);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, requests) = (files.clone(), requests.clone());
                let habit = *habit.lock().unwrap();
                thread::spawn(move || answer(stream.unwrap(), &files, habit, &requests));
            }
        });
        server
    }

    pub fn set_habit(&self, habit: Habit) {
        *self.habit.lock().unwrap() = habit;
    }

    /// The requests for paths that end like this, so far.
    pub fn requests(&self, path_end: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.path.ends_with(path_end)).cloned().collect()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    habit: Habit,
    requests: &Mutex<Vec<Request>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_string();
    let mut range = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.to_string());
        }
    }

    let mut head = String::from("HTTP/1.1 404 Not Found\r\n");
    let mut body: &[u8] = b"nothing here";
    let mut bytes_max = usize::MAX;
    if let Some(file) = files.get(&path) {
        let start = range.as_ref().and_then(|range| {
            range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        (head, body) = match (start, habit) {
            (Some(_), Habit::RefusesRange) => ("HTTP/1.1 416 No\r\n".into(), b"".as_slice()),
            (Some(start), Habit::Good | Habit::HangsUpAfter(_)) => {
                let (last, all) = (file.len() - 1, file.len());
                let line = format!("Content-Range: bytes {start}-{last}/{all}");
                (format!("HTTP/1.1 206 Partial Content\r\n{line}\r\n"), &file[start..])
            }
            _ => ("HTTP/1.1 200 OK\r\n".into(), file.as_slice()),
        };
        if let Habit::HangsUpAfter(bytes) = habit
            && !path.ends_with('/')
        {
            bytes_max = bytes;
        }
    }
    let sent = &body[..body.len().min(bytes_max)];
    requests.lock().unwrap().push(Request { path, range, bytes_sent: sent.len() });
    let head = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The client may hang up before it has read all.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
}
