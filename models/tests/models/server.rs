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

/// What the server has at a path.
pub enum Answer {
    File(Vec<u8>),
    /// The bytes are at another address, and this one says more of them in such headers.
    Redirect {
        location: String,
        headers: Vec<(&'static str, String)>,
    },
    /// Another status, such as 401.
    Status(u16),
}

/// A request that the server has answered.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
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
        Self::with(files.into_iter().map(|(path, file)| (path, Answer::File(file))).collect())
    }

    /// Answers so, by path, until the test ends.
    pub fn with(answers: HashMap<String, Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let habit = Arc::new(Mutex::new(Habit::Good));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let server = Self { url, habit: habit.clone(), requests: requests.clone() };
        let answers = Arc::new(answers);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, requests) = (answers.clone(), requests.clone());
                let habit = *habit.lock().unwrap();
                thread::spawn(move || answer(stream.unwrap(), &answers, habit, &requests));
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
    answers: &HashMap<String, Answer>,
    habit: Habit,
    requests: &Mutex<Vec<Request>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let [method, path] = [0, 1].map(|n| first.split(' ').nth(n).unwrap().to_string());
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
    match answers.get(&path) {
        Some(Answer::File(file)) => {
            (head, body) = serve(file, range.as_deref(), habit);
            if let Habit::HangsUpAfter(bytes) = habit
                && !path.ends_with('/')
            {
                bytes_max = bytes;
            }
        }
        Some(Answer::Redirect { location, headers }) => {
            head = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n");
            headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        }
        Some(Answer::Status(status)) => head = format!("HTTP/1.1 {status} No\r\n"),
        None => {}
    }
    if method == "HEAD" {
        bytes_max = 0;
    }
    let sent = &body[..body.len().min(bytes_max)];
    requests.lock().unwrap().push(Request { method, path, range, bytes_sent: sent.len() });
    let head = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The client may hang up before it has read all.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
}

/// The head and the body of an answer with a file, or with the rest of it.
fn serve<'a>(file: &'a [u8], range: Option<&str>, habit: Habit) -> (String, &'a [u8]) {
    let start = range
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match (start, habit) {
        (Some(_), Habit::RefusesRange) => ("HTTP/1.1 416 No\r\n".into(), b"".as_slice()),
        (Some(start), Habit::Good | Habit::HangsUpAfter(_)) => {
            let (last, all) = (file.len() - 1, file.len());
            let line = format!("Content-Range: bytes {start}-{last}/{all}");
            (format!("HTTP/1.1 206 Partial Content\r\n{line}\r\n"), &file[start..])
        }
        _ => ("HTTP/1.1 200 OK\r\n".into(), file),
    }
}
